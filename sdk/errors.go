package sdk

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/boughdb/bough/api"
)

// Error is an answer that says the call failed. Ask it questions with the Is functions.
type Error struct {
	Status     int           // HTTP status
	Code       string        // stable word for programs, such as BRANCH_NOT_FOUND; may be empty
	Message    string        // for people
	RequestID  string        // names the call in the server's log; may be empty
	RetryAfter time.Duration // how long the server asks to wait; 0 when it does not say
}

// Error gives the message with what is needed to find the call again.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s (HTTP %d", e.Message, e.Status)
	if e.Code != "" {
		s += " " + e.Code
	}
	if e.RequestID != "" {
		s += ", request " + e.RequestID
	}
	return s + ")"
}

func newError(resp *http.Response, body []byte) *Error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	e.RetryAfter, _ = retryAfter(resp.Header, time.Now())
	var wire api.Error
	if json.Unmarshal(body, &wire) == nil {
		e.Code, e.Message = wire.Code, wire.Message
		if wire.RequestID != nil && *wire.RequestID != "" {
			e.RequestID = *wire.RequestID
		}
	}
	if e.Message == "" {
		// Something in between answered, a proxy for instance.
		e.Message = "the server answered " + http.StatusText(resp.StatusCode)
	}
	return e
}

func hasStatus(err error, statuses ...int) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	for _, s := range statuses {
		if e.Status == s {
			return true
		}
	}
	return false
}

// IsInvalid tells whether the request was wrong or broke a rule (400, 406, 413, 422).
func IsInvalid(err error) bool {
	return hasStatus(err, http.StatusBadRequest, http.StatusNotAcceptable, http.StatusRequestEntityTooLarge,
		http.StatusUnprocessableEntity)
}

// IsUnauthorized tells whether the key is missing, wrong or revoked (401).
func IsUnauthorized(err error) bool { return hasStatus(err, http.StatusUnauthorized) }

// IsForbidden tells whether the key may not do this (403).
func IsForbidden(err error) bool { return hasStatus(err, http.StatusForbidden) }

// IsNotFound tells whether the resource is missing, not visible to the key, or gone (404, 410).
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound, http.StatusGone) }

// IsConflict tells whether a name is taken (409).
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsPrecondition tells whether the resource is not in the mode that the call needs (412): a password that is not stored.
func IsPrecondition(err error) bool { return hasStatus(err, http.StatusPreconditionFailed) }

// IsLocked tells whether conflicting operations were still running after all retries (423).
func IsLocked(err error) bool { return hasStatus(err, http.StatusLocked) }

// IsRateLimited tells whether there were too many calls even after all retries (429).
func IsRateLimited(err error) bool { return hasStatus(err, http.StatusTooManyRequests) }

// IsUnavailable tells whether the server cannot serve the call now (502, 503, 504).
func IsUnavailable(err error) bool {
	return hasStatus(err, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout)
}

// IsNotImplemented tells whether the call is published but not built (501).
func IsNotImplemented(err error) bool { return hasStatus(err, http.StatusNotImplemented) }

// OperationError says that an operation ended without success.
type OperationError struct {
	Operation Operation
}

// Error names the operation, what it worked on, and why it ended.
func (e *OperationError) Error() string {
	op := e.Operation
	s := string(op.Action)
	switch {
	case op.EndpointID != nil:
		s += " of " + *op.EndpointID
	case op.BranchID != nil:
		s += " of " + *op.BranchID
	default:
		s += " of " + op.ProjectID
	}
	switch op.Status {
	case api.OperationStatusCancelled:
		s += " was cancelled"
	default:
		s += " failed"
	}
	if op.Error != nil && *op.Error != "" {
		s += ": " + *op.Error
	}
	return s + " (operation " + op.ID + ")"
}

// IsOperationFailed returns the operation when err says that one ended without success.
func IsOperationFailed(err error) (Operation, bool) {
	if e, ok := errors.AsType[*OperationError](err); ok {
		return e.Operation, true
	}
	return Operation{}, false
}
