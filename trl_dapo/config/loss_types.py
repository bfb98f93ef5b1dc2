"""What TRL's loss types have in common."""

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
# They divide by `num_items_in_batch`.
TOKEN_NORMALIZED_LOSSES = ("dapo", "cispo", "vespo")
# They take the mean over rows.
ROW_NORMALIZED_LOSSES = ("grpo", "sapo", "dr_grpo", "luspo")
# In these a ratio beyond the bounds stops the gradient.
CLIPPED_LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo")
