"""What a recipe will need on a machine, before anything is spent: parameters, work, memory, disk, hours, money."""
