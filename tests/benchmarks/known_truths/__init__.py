"""Truth by construction: tasks where what a model must and must not use is known beforehand."""
