"""A learned order for masked language models that are there already, and stay as they are."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .order_adapter import OrderAdapter, OrderAdapterConfig

__all__ = ["OrderAdapter", "OrderAdapterConfig"]

AutoConfig.register(OrderAdapterConfig.model_type, OrderAdapterConfig)
AutoModel.register(OrderAdapterConfig, OrderAdapter)
AutoModelForMaskedLM.register(OrderAdapterConfig, OrderAdapter)
