"""Any torch module as autoprune reads it: accepted or refused, adapted to tensors in order, its data as examples."""
