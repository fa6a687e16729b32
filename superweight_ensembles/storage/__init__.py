"""Files and folders that are whole or absent, and are read with nothing trusted."""
