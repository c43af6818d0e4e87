"""The gRPC edge: every call enters here, and every refusal leaves here.

    call ──▶ guard     counts it (`in_flight`), admits it (`admission`), bounds its time and, for streams, its number
         ──▶ services  the methods of the contract; `messages` converts to and from the values of `exports`
         ──▶ exports   the rules
    refusal ──▶ abort  a status with ErrorInfo; `refusal_table` says which

`methods` describes methods for the guard, `call_context` reads gRPC's context, `listener` is the port's settings.
May import exports, auth, cells, refusals, and cellexport.
"""
