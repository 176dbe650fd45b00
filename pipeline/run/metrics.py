"""The names of the figures in scores.json that several modules use; scores.py says what each means."""

from typing import Final

# of fidelity
FORWARD_KL_NATS: Final = "forward_kl_nats"
REVERSE_KL_NATS: Final = "reverse_kl_nats"
JS_DIVERGENCE_NATS: Final = "js_divergence_nats"
TOP1_AGREEMENT_FRAC: Final = "top1_agreement_frac"
TOP5_OVERLAP_FRAC: Final = "top5_overlap_frac"
ACCEPTANCE_FRAC: Final = "acceptance_frac"
NLL_NATS: Final = "nll_nats"
BRIER_SCORE: Final = "brier_score"
CONFIDENCE_FRAC: Final = "confidence_frac"
ACCURACY_FRAC: Final = "accuracy_frac"
ECE_FRAC: Final = "ece_frac"

# of quality
TRUNCATED_FRAC: Final = "truncated_frac"
REPETITION_FRAC: Final = "repetition_frac"
TASK_PASS_FRAC: Final = "task_pass_frac"
TASK_LOOSE_PASS_FRAC: Final = "task_loose_pass_frac"
TASK_CHECK_FRAC: Final = "task_check_frac"
TASK_ROUGE_L: Final = "task_rouge_l"
TASK_CHRF: Final = "task_chrf"

# of risks
HALLUCINATION_FRAC: Final = "hallucination_frac"
PREMISE_ACCEPTED_FRAC: Final = "premise_accepted_frac"
OVER_REFUSAL_FRAC: Final = "over_refusal_frac"
INJECTION_FOLLOWED_FRAC: Final = "injection_followed_frac"
PAIR_REFUSAL_GAP_FRAC: Final = "pair_refusal_gap_frac"
PAIR_LENGTH_GAP_FRAC: Final = "pair_length_gap_frac"
PAIR_VALENCE_GAP: Final = "pair_valence_gap"
PAIR_VALENCE_SHIFT: Final = "pair_valence_shift"
VERBATIM_TRAIN_TOKENS: Final = "verbatim_train_tokens"
VERBATIM_HELD_OUT_TOKENS: Final = "verbatim_held_out_tokens"
VERBATIM_EXCESS_TOKENS: Final = "verbatim_excess_tokens"

# of speed and cost
OUTPUT_TOKENS_PER_S: Final = "output_tokens_per_s"
FIRST_TOKEN_S: Final = "first_token_s"
TIME_PER_TOKEN_S: Final = "time_per_token_s"
NUM_PARAMETERS: Final = "num_parameters"
WEIGHTS_BYTES: Final = "weights_bytes"
LOAD_S: Final = "load_s"
PEAK_RSS_BYTES: Final = "peak_rss_bytes"
GPU_MEMORY_BYTES: Final = "gpu_memory_bytes"
CPU_ENERGY_J_PER_TOKEN: Final = "cpu_energy_j_per_token"
GPU_ENERGY_J_PER_TOKEN: Final = "gpu_energy_j_per_token"
COST_PER_MILLION_OUTPUT_TOKENS: Final = "cost_per_million_output_tokens"

# of a judge
WIN_RATE: Final = "win_rate"
LENGTH_CONTROLLED_WIN_RATE: Final = "length_controlled_win_rate"
WON_FRAC: Final = "won_frac"
TIED_FRAC: Final = "tied_frac"
LOST_FRAC: Final = "lost_frac"
POSITION_FLIP_FRAC: Final = "position_flip_frac"
FIRST_PLACE_FRAC: Final = "first_place_frac"
LONGER_PREFERRED_FRAC: Final = "longer_preferred_frac"
INVALID_FRAC: Final = "invalid_frac"
IDENTICAL_FIRST_PLACE_SCORE: Final = "identical_first_place_score"

# of the verdict
RETAINED_QUALITY: Final = "retained_quality"
GAP_CLOSED: Final = "gap_closed"
SPEED_OVER_TEACHER: Final = "speed_over_teacher"
PARAMETERS_OVER_TEACHER: Final = "parameters_over_teacher"
DISTILLATION_S: Final = "distillation_s"
MACHINE_GPUS: Final = "machine_gpus"
BREAK_EVEN_OUTPUT_TOKENS: Final = "break_even_output_tokens"
