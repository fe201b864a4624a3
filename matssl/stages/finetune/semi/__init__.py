"""Semi-supervised methods by name; a file and a line here make another one."""

from matssl.stages.finetune.semi.base import SemiMethod
from matssl.stages.finetune.semi.fixmatch import FIXMATCH
from matssl.stages.finetune.semi.mean_teacher import MEAN_TEACHER
from matssl.stages.finetune.semi.unimatch import UNIMATCH

SEMI: dict[str, SemiMethod] = {
    "mean_teacher": MEAN_TEACHER,
    "fixmatch": FIXMATCH,
    "unimatch": UNIMATCH,
}
