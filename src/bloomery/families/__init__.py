"""The families we read and write: a new one is one file and one row here."""

from bloomery.families.bloom import BLOOM
from bloomery.families.gpt2 import GPT2
from bloomery.families.rules import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {family.name: family for family in (BLOOM, GPT2)}
