"""The kinds of chardev that come with vconfs; each is found by its entry point."""
