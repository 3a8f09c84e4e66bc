"""How a training or an evaluation is computed: recordings, precision, memory, processes, checkpoints."""
