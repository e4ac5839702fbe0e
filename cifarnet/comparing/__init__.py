"""Past runs side by side; imports core, settings, checkpoints and reporting."""
