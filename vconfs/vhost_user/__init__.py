"""What both ends of vhost-user need: messages that carry descriptors, and notifications."""
