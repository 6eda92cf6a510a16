// Package core holds Bough's domain: projects, branches, endpoints, roles, databases, operations, keys and the errors
// that cross rooms. It imports the standard library only.
package core

import (
	"errors"
	"fmt"
	"time"
)

// Kind classifies an error by what the caller can do about it. Doors map a Kind to their protocol's own status.
type Kind int

// The kinds, each with the HTTP status that the REST door gives it.
const (
	KindInternal       Kind = iota // 500: nothing the caller can do; the text is hidden
	KindInvalid                    // 400: the request is wrong
	KindUnauthorized               // 401: no key, or one that is not valid
	KindForbidden                  // 403: the key may not do this
	KindNotFound                   // 404: missing, or not visible to the key
	KindNotAcceptable              // 406: what is asked for lies outside of what there is
	KindConflict                   // 409: a name is taken
	KindGone                       // 410: existed once
	KindPrecondition               // 412: the resource is not in the mode that the call needs
	KindTooLarge                   // 413: the body is over the limit
	KindUnprocessable              // 422: well-formed, but refused by a rule
	KindLocked                     // 423: conflicting operations are still running
	KindRateLimited                // 429: too many requests
	KindNotImplemented             // 501: published, not built
	KindUnavailable                // 503: try again later
	KindNoSpace                    // 503: a storage reserve is reached
)

// Error is the one error type that crosses rooms.
type Error struct {
	Kind       Kind
	Code       string        // API error code such as BRANCH_NOT_FOUND; empty means the kind's default
	Op         string        // what was being done, for logs: "storage.clone"
	Message    string        // safe to show to a user; says what to do
	Hint       string        // for the operator only
	RetryAfter time.Duration // > 0 when a retry makes sense
	Err        error         // cause; never shown to a user
}

// Error implements error. The text is for logs: it holds the cause and the hint.
func (e *Error) Error() string {
	s := e.Message
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (hint: " + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of a kind with a user-safe message.
func Errorf(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalidf is a KindInvalid error with the code BAD_REQUEST.
func Invalidf(format string, args ...any) *Error {
	return Errorf(KindInvalid, "BAD_REQUEST", format, args...)
}

// NotFoundf is a KindNotFound error with the code RESOURCE_NOT_FOUND.
func NotFoundf(format string, args ...any) *Error {
	return Errorf(KindNotFound, "RESOURCE_NOT_FOUND", format, args...)
}

// Wrap gives an internal cause an operation and an operator's hint. It returns nil for a nil cause, and leaves the kind,
// code and message of a cause that already is an Error.
func Wrap(err error, op, hint string) error {
	if err == nil {
		return nil
	}
	out := &Error{Kind: KindInternal, Op: op, Hint: hint, Message: "internal error", Err: err}
	if e, ok := errors.AsType[*Error](err); ok {
		out.Kind, out.Code, out.Message, out.RetryAfter = e.Kind, e.Code, e.Message, e.RetryAfter
	}
	return out
}

// KindOf returns the kind of the first Error in the chain, KindInternal when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindInternal
}

// IsKind tells whether err's chain holds an Error of that kind.
func IsKind(err error, kind Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == kind
}

// UserMessage returns what may be shown to a user: the message of an Error, "internal error" for anything else.
func UserMessage(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Kind != KindInternal {
		return e.Message
	}
	return "internal error"
}
