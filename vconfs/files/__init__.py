"""What a mount shows beside the bytes: names, attributes, rules, events, consoles."""
