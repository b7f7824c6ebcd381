"""What happens around a method: phases, evaluation, cost, predictions."""
