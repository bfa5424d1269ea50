"""Instructions an element, counted under callgrind: a guard of speed that no noise disturbs."""
