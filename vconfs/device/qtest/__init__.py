"""The console of a QEMU process without a guest, to try QEMU's device model or to test with it."""
