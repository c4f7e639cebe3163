"""Small files that change what a checkpoint draws: LoRA and its family, hypernetworks, embeddings."""
