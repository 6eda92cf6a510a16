package httpd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
)

// kinds is the one map from a kind of error to an HTTP status, and the code and the Retry-After that an error without its own
// gets.
var kinds = map[core.Kind]struct {
	status int
	code   string
	again  time.Duration
}{
	core.KindInternal:       {http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", 0},
	core.KindInvalid:        {http.StatusBadRequest, "BAD_REQUEST", 0},
	core.KindUnauthorized:   {http.StatusUnauthorized, "UNAUTHORIZED", 0},
	core.KindForbidden:      {http.StatusForbidden, "FORBIDDEN", 0},
	core.KindNotFound:       {http.StatusNotFound, "RESOURCE_NOT_FOUND", 0},
	core.KindNotAcceptable:  {http.StatusNotAcceptable, "NOT_ACCEPTABLE", 0},
	core.KindConflict:       {http.StatusConflict, "CONFLICT", 0},
	core.KindGone:           {http.StatusGone, "GONE", 0},
	core.KindPrecondition:   {http.StatusPreconditionFailed, "PRECONDITION_FAILED", 0},
	core.KindTooLarge:       {http.StatusRequestEntityTooLarge, "REQUEST_TOO_LARGE", 0},
	core.KindUnprocessable:  {http.StatusUnprocessableEntity, "UNPROCESSABLE_ENTITY", 0},
	core.KindLocked:         {http.StatusLocked, "CONFLICTING_OPERATIONS", time.Second},
	core.KindRateLimited:    {http.StatusTooManyRequests, "TOO_MANY_REQUESTS", time.Second},
	core.KindNotImplemented: {http.StatusNotImplemented, "NOT_IMPLEMENTED", 0},
	core.KindUnavailable:    {http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE", time.Second},
	core.KindNoSpace:        {http.StatusServiceUnavailable, "INSUFFICIENT_STORAGE", time.Minute},
}

func defaultCode(k core.Kind) string { return kinds[k].code }

// statusClientGone is logged for a call whose client hung up; nobody reads it.
const statusClientGone = 499

// fail answers with an error and logs, once and here, what the user may not see.
func (d *door) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		w.WriteHeader(statusClientGone)
		return
	}
	e, ok := errors.AsType[*core.Error](err)
	if !ok {
		e = &core.Error{Kind: core.KindInternal}
	}
	kind, ok := kinds[e.Kind]
	if !ok {
		kind = kinds[core.KindInternal]
	}
	code, message := e.Code, e.Message
	if code == "" {
		code = kind.code
	}
	switch {
	case kind.status == http.StatusInternalServerError:
		code, message = kind.code, "internal error"
		d.log.ErrorContext(r.Context(), "internal error", "request_id", RequestID(r.Context()),
			"operation", Operation(r.Context()), "error", err, "op", e.Op, "hint", e.Hint)
	case e.Err != nil || e.Hint != "":
		d.log.WarnContext(r.Context(), "call refused", "request_id", RequestID(r.Context()),
			"operation", Operation(r.Context()), "error", err)
	}
	setRetryAfter(w.Header(), e)
	d.write(w, r, kind.status, code, message)
}

// setRetryAfter says when a call that err refused may be sent again, if ever.
func setRetryAfter(h http.Header, err error) {
	e, ok := errors.AsType[*core.Error](err)
	if !ok {
		return
	}
	if wait := cmp.Or(e.RetryAfter, kinds[e.Kind].again); wait > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(wait.Seconds())), 10))
	}
}

// write sends an error body.
func (d *door) write(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	body := api.Error{Code: code, Message: message}
	if id := RequestID(r.Context()); id != "" {
		body.RequestID = &id
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // the client is gone
}

// notAllowed answers for a method that a path does not have; allow lists those that it has.
func (d *door) notAllowed(w http.ResponseWriter, r *http.Request, allow string) {
	w.Header().Set("Allow", allow)
	d.write(w, r, http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", r.Method+" is not possible here; this path knows "+allow)
}

// badRequest answers for what the generated code could not read although the contract allows it, such as the 31st of
// February.
func (d *door) badRequest(w http.ResponseWriter, r *http.Request, err error) {
	msg := "the request cannot be read"
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		msg = fmt.Sprintf("%s: must be a %s that fits", e.Field, typeWord(e.Type.Kind().String()))
	} else if e, ok := errors.AsType[*time.ParseError](err); ok {
		msg = fmt.Sprintf("%s is not a time; expected one like %s", clip(e.Value), exampleTime)
	} else if e, ok := errors.AsType[*api.InvalidParamFormatError](err); ok {
		msg = e.ParamName + ": has the wrong format"
	}
	d.fail(w, r, &core.Error{Kind: core.KindInvalid, Message: msg})
}

// clip shortens what a client sent before it is shown back.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}
