"""What a person reads of a run: answers before and after, side by side."""

from jlora.monitor._answers import compared as compared
