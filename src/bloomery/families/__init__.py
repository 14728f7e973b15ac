"""The families we read and write: a new one is one file and one row here."""

from bloomery.families.bloom import BLOOM
from bloomery.families.falcon import FALCON
from bloomery.families.gpt2 import GPT2
from bloomery.families.llama import LLAMA, MISTRAL
from bloomery.families.mixtral import MIXTRAL
from bloomery.families.phi import PHI
from bloomery.families.rules import Family
from bloomery.families.starcoder import STARCODER

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (BLOOM, GPT2, LLAMA, MISTRAL, MIXTRAL, FALCON, PHI, STARCODER)
}
