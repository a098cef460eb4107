"""vconfs drives a virtio console device from user space and shows its ports as files."""
