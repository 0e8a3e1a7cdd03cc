"""Changes to the model: each is checked, made, saved and then told, or leaves nothing behind."""
