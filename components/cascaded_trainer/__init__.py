"""CascadedTrainer: trains one objective of the cascade on top of the previous one."""
