"""How the things shipped with restrl were made; each recipe is one command."""
