"""What happens around a method: phases, evaluation, cost, predictions; none knows a concrete method."""
