"""A trio session on the kernel's FUSE protocol, for any pyfuse3.Operations."""
