"""The training of whole models: loop, optimiser, checkpoints, fine-tuning."""
