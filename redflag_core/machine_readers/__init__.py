"""Readers of this machine's ids, one module for each operating system. They implement `ports.MachineIdentity`."""
