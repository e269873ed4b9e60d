"""
redflag_core: the decisions of RedFlag, without network, clock, randomness or globals.

Import the public names from here; each is loaded when it is first used, so importing the package costs
little more than importing PyNaCl and attrs.
"""

from redflag_core._version import __version__
from redflag_core.errors import RedFlagError, VerificationError
from redflag_core.keys import SigningKey, VerifyKey

__all__ = ["RedFlagError", "SigningKey", "VerificationError", "VerifyKey", "__version__"]
