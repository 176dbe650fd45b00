"""What this machine has and what it uses: cores, memory, GPUs, energy."""
