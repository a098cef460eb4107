"""What a mount shows besides the ports' bytes: names, attributes, rules, events, consoles."""
