"""
The versions that ``constraints.txt`` pins: what our extras need, as it is installed here.

``python -m tests.helpers.constraints`` prints them. Names and versions only: where packages come from is each
machine's own affair, and pip and setuptools are the environment's.
"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = "redflag-rmm"
LEFT_ALONE = {"pip", "setuptools", "wheel"}


def needed(extra: str = "dev") -> dict[str, str]:
    """Versions by name of everything that *extra* of our distribution needs, directly or not."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    open_ends = [(OURS, extra)]
    while open_ends:
        name, wanted = end = open_ends.pop()
        if end in seen:
            continue
        seen.add(end)
        try:
            versions[name] = distribution(name).version
        except PackageNotFoundError:  # of another system or Python
            continue
        open_ends.extend(_requirements(name, wanted))
    return {name: versions[name] for name in sorted(versions.keys() - LEFT_ALONE - {OURS})}


def _requirements(name: str, extra: str) -> Iterator[tuple[str, str]]:
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            other = canonicalize_name(requirement.name)
            yield other, ""
            yield from ((other, chosen) for chosen in requirement.extras)


if __name__ == "__main__":
    print("# What our extras need, pinned. Made by `make constraints`; see CONTRIBUTING.md.")
    for pinned, version in needed().items():
        print(f"{pinned}=={version}")
