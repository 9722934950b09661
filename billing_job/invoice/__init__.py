"""due cycles, quantities, prices → what an invoice says, and why. Calls neither Stripe nor the ledger."""
