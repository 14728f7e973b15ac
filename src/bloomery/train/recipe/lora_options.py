"""The recipe's section on training an adapter in place of the model. Knows no tensor, no model and no file."""

from dataclasses import dataclass, fields

from bloomery.train.recipe.checked import check, check_between, check_counts

ALL = "all-linear"
TARGETS = ("attn.qkv", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
"""The matrices of a block that can be adapted; `mlp.…` of every expert, where there are several."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """LoRA (Hu et al. 2021): the model stays as it is, and two small matrices are learned beside some of its own.

    Raises:
        UsageError: a number is out of its range, a target is none, or there are options without a rank.
    """

    rank: int = 0
    """Inner size of the two matrices; 0: no adapter, the whole model is trained."""
    alpha: float = 16.0
    """Their product counts alpha / rank times."""
    dropout: float = 0.0
    """Part of their input that is dropped."""
    targets: tuple[str, ...] = (ALL,)
    """Matrices that get an adapter: all-linear, or some of attn.qkv, attn.out, mlp.gate, mlp.up, mlp.down."""
    rslora: bool = False
    """Their product counts alpha / sqrt(rank) times (Kalajdzievski 2023): high ranks then learn as fast as low ones."""

    def __post_init__(self) -> None:
        check_counts("lora", self, "rank", least=0)
        check_between("lora", self, 0, float("inf"), "alpha", open_at="low")
        check_between("lora", self, 0, 1, "dropout", open_at="high")
        check(bool(self.targets), f"lora.targets names no matrix: give {ALL}, or some of {', '.join(TARGETS)}")
        for target in self.targets:
            check(
                target in TARGETS or self.targets == (ALL,),
                f"lora.targets holds '{target}': give {ALL} alone, or some of {', '.join(TARGETS)}",
            )
        idle = [option.name for option in fields(self) if getattr(self, option.name) != option.default]
        check(self.rank > 0 or not idle, f"lora.{idle[0] if idle else ''} means nothing without lora.rank: give a rank")

    @property
    def scale(self) -> float:
        """What the product of the two matrices counts."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def adapts(self, matrix: str) -> bool:
        """Whether a matrix of a block, named as in `TARGETS`, gets an adapter."""
        return matrix in (TARGETS if self.targets == (ALL,) else self.targets)
