"""What a linear branch starts from, by its layer's W or by a gradient."""

from noble_fx.training.initial.cores import core as core
from noble_fx.training.initial.cores import diagonal as diagonal
from noble_fx.training.initial.initialise import Start as Start
from noble_fx.training.initial.initialise import initialise as initialise
