"""What plain English says without a model: days, facts, persons, what is junk."""
