# The library's face: some twenty names, and the rooms as namespaces of the rest. swe.adaptive has learned widths,
# swe.plan targets and options, swe.search un-tying, swe.training hooks, swe.anytime costs and exits, swe.experiment
# recipes.
from . import anytime as anytime
from . import data as data
from . import ensemble as ensemble
from . import experiment as experiment
from . import export as export
from . import models as models
from . import plan as plan
from . import search as search
from . import training as training
from .anytime import AnytimePredictor as AnytimePredictor
from .anytime import evaluate as evaluate
from .data import load_data as load_data
from .ensemble import SuperWeightEnsemble as SuperWeightEnsemble
from .ensemble import transform_of as transform_of
from .ensemble import warm_start as warm_start
from .errors import SuperWeightError as SuperWeightError
from .errors import TrainingStopped as TrainingStopped
from .experiment import results as results
from .experiment import run as run
from .export import export_cascade as export_cascade
from .export import export_member as export_member
from .models import adaptive as adaptive
from .models import build_member as build_member
from .models import wide_resnet as wide_resnet
from .plan import SharingPlan as SharingPlan
from .plan import independent_plan as independent_plan
from .plan import plan_sharing as plan_sharing
from .search import search_sharing as search_sharing
from .training import AveragedWeights as AveragedWeights
from .training import Distillation as Distillation
from .training import Hook as Hook
from .training import TrainConfig as TrainConfig
from .training import TrainResult as TrainResult
from .training import train as train
