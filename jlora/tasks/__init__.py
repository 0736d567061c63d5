"""What a run teaches and how well it is learned: `Task`, and those that come with jlora.

A task of your own is a file with a class ``Task``, derived from `Answers`; `_home_assistant.py` is
one to look at. `find` gives the class of a name or of a file.
"""

from jlora.tasks._answers import Answers as Answers
from jlora.tasks._classify import Classify as Classify
from jlora.tasks._compared import compared as compared
from jlora.tasks._find import find as find
from jlora.tasks._home_assistant import HomeAssistant as HomeAssistant
from jlora.tasks._rows import Rows as Rows
from jlora.tasks._sentences import home_assistant as home_assistant
from jlora.tasks._task import Task as Task
