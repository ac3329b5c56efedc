"""Any torch module as autoprune reads it: accepted or refused, adapted to tensors in order, with data as examples."""
