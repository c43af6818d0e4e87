"""The gRPC edge: every call enters here, and every refusal leaves here.

    call ──▶ guard     counts the call (`in_flight`), admits it (`admission`), limits its time and the number of streams
         ──▶ services  the methods of the contract; `messages` converts to and from the values of `exports`
         ──▶ exports   the rules
    refusal ──▶ abort  ends the call with the refusal's gRPC status (`refusal_table`) and ErrorInfo

`methods` describes methods for the guard, `call_context` reads gRPC's context, `listener` sets up the gRPC port.
May import exports, auth, cells, refusals, and cellexport.
"""
