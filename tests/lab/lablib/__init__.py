"""The lab: real Xen hosts in software emulation. See tests/lab/README.md."""
