"""What keeps a run from hanging, from ruining its weights and from moving them without a reason."""
