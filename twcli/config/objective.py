"""The loss of `twcli train`; its options are for comparison with the literature."""

from __future__ import annotations

from dataclasses import dataclass

from twcli.config.options import LITERATURE, Config, flag_of, option
from twcli.config.weightings import WEIGHTINGS
from twcli.errors import UserError

TAU = 1e-4  # nats


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """What is minimised: weights of the tokens, KL, posterior and its start."""

    weighting: str = option(
        "mixed",
        group=LITERATURE,
        help="Weights of the token losses: "
        + ", ".join(f"{name} ({one.help})" for name, one in WEIGHTINGS.items())
        + ".",
        choices=WEIGHTINGS,
    )
    uniform_weight: float = option(
        1.0,
        group=LITERATURE,
        help="Factor of the uniform term under --weighting mixed.",
        minimum=0.0,
    )
    token_weight: float = option(
        2.0,
        group=LITERATURE,
        help="Factor of the b_t-weighted term under --weighting mixed.",
        minimum=0.0,
    )
    baseline_policy: str = option(
        "frozen",
        group=LITERATURE,
        help=(
            "b_t of the original model (the file at --baseline), or of the current model at each "
            "step."
        ),
        choices=("frozen", "dynamic"),
    )
    ablation: str = option(
        "none",
        group=LITERATURE,
        help=("Subtract b_t instead of weighting with it: its mean over y, or each token's."),
        choices=("none", "scalar-baseline", "token-baseline"),
    )
    beta: float = option(
        0.1, group=LITERATURE, help="Factor of KL(posterior || router), in nats.", above=0.0
    )
    beta_warmup: float = option(
        0.0,
        group=LITERATURE,
        help=("Share of the steps, or of each cycle, over which beta rises from 0 (KL annealing)."),
        minimum=0.0,
        maximum=1.0,
    )
    beta_cycles: int = option(
        1, group=LITERATURE, help="Number of annealing cycles (cyclical KL annealing).", minimum=1
    )
    free_bits: float = option(
        0.0,
        group=LITERATURE,
        help=(
            "KL in nats per example that is not penalised (free bits), where the posterior is "
            "learned."
        ),
        minimum=0.0,
    )
    posterior_update: str = option(
        "learned",
        group=LITERATURE,
        help=(
            "How the posterior is learned: by gradient, by hard EM, or from the closed form with "
            "latents balanced over the batch (Sinkhorn)."
        ),
        choices=("learned", "hard", "balanced"),
    )
    divergence: float = option(
        0.0,
        group=LITERATURE,
        help=(
            "Factor of a reward for the b_t-weighted Jensen-Shannon divergence between the "
            "latents' next tokens, where the posterior is learned."
        ),
        minimum=0.0,
    )
    normalise: bool = option(
        False, group=LITERATURE, help="Divide each row's reconstruction by its mean b_t."
    )
    tau: float = option(
        TAU,
        group=LITERATURE,
        help="Sum of b_t in nats up to which a row is weighted uniformly.",
        minimum=0.0,
    )
    posterior: str = option(
        "shared",
        group=LITERATURE,
        help=(
            "q(z|x,y): a head on the trained model, a head on a separate copy of it, or the exact"
            " posterior."
        ),
        choices=("shared", "separate", "exact"),
    )
    warm_start: str = option(
        "centered",
        group=LITERATURE,
        help=("Posterior at the start: the clusters of the records (centered), or none."),
        choices=("centered", "none"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting == "mixed" and self.uniform_weight + self.token_weight == 0:
            raise UserError(
                "--uniform-weight and --token-weight are both 0; one of them must be positive"
            )
        if self.beta_cycles > 1 and not self.beta_warmup:
            raise UserError(
                "--beta-cycles: beta rises over --beta-warmup of each cycle, and that is 0; "
                "give --beta-warmup 0.5"
            )
        if self.ablation != "none" and self.term_weights()[1] == 0:
            raise UserError(
                f"--ablation {self.ablation}: changes the term that b_t weights, "
                "and --weighting and --token-weight leave none; give --weighting token or mixed"
            )

    @property
    def free_only(self) -> str | None:
        """The first option given that acts only where the posterior is learned, as its flag."""
        given = {
            "free_bits": self.free_bits > 0,
            "posterior_update": self.posterior_update != "learned",
            "divergence": self.divergence > 0,
        }
        for name, here in given.items():
            if here:
                return flag_of(name)
        return None

    def term_weights(self) -> tuple[float, float]:
        """Factors of the uniform and of the token-weighted reconstruction term: the weighting's
        own, or the options' where it leaves them open.
        """
        chosen = WEIGHTINGS[self.weighting]
        uniform = chosen.uniform
        if uniform is None:
            uniform = self.uniform_weight
        token = chosen.token
        if token is None:
            token = self.token_weight
        return uniform, token

    @property
    def uses_weights(self) -> bool:
        """Whether b_t weights any token of the loss; a run of the uniform loss needs no cache."""
        return self.ablation == "none" and self.term_weights()[1] > 0
