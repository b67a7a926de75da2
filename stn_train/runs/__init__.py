"""What a run leaves in its folder, and the machine that it ran on."""
