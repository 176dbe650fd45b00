"""What the one real engine of a session of tests is started with."""

K = 20  # log-probs a token
ENGINE = {"max_model_len": 1024, "max_num_seqs": 8}
