package proxy

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/core"
)

// SQLSTATE codes the door answers with. Drivers retry class 57P03 and 53, and give up on 28.
const (
	codeProtocolViolation   = "08P01"
	codeUnsupported         = "0A000"
	codeInvalidAuth         = "28000" // what PostgreSQL says when no rule lets a client in
	codeBadPassword         = "28P01"
	codeDiskFull            = "53100"
	codeTooManyConnections  = "53300"
	codeWrongState          = "55000"
	codeQueryCanceled       = "57014"
	codeAdminShutdown       = "57P01"
	codeCrashShutdown       = "57P02"
	codeCannotConnectNow    = "57P03"
	codeSystemError         = "58000"
	textTooManyHandshakes   = "too many connections are being set up on this server; try again in a moment"
	textServerStopping      = "the server is shutting down"
	textSessionCut          = "terminating connection: the endpoint was suspended, restarted or deleted"
	hintPassEndpoint        = "Connect to the endpoint's own host name with a client that sends it (SNI), or add options=endpoint%3D<endpoint id> to the connection string, or send the password as endpoint=<endpoint id>;<password>."
	hintCheckEndpoint       = "Check the host name or the endpoint option in the connection string; deleted endpoints do not come back."
	textInsecure            = "this server accepts encrypted connections only: connect with sslmode=require"
	textInternal            = "internal error"
	textWrongLength         = "invalid length of startup packet"
	textWrongLayout         = "invalid startup packet layout: expected terminator as last byte"
	textHandshakeTimeoutFmt = "the connection was not set up within %s"
)

// errGone means that the client went away or was sent all it will get: nothing is written any more.
var errGone = errors.New("client gone")

// Why a session was ended from our side; the causes of its context.
var (
	errSessionCut     = errors.New("session cut by the control room")
	errServerStopping = errors.New("server stopping")
)

// fatal is an error that the client sees as a FATAL ErrorResponse.
type fatal struct {
	code    string
	message string
	hint    string
	cause   error // for the log
}

func (f *fatal) Error() string {
	if f.cause != nil {
		return fmt.Sprintf("%s (%s): %v", f.message, f.code, f.cause)
	}
	return fmt.Sprintf("%s (%s)", f.message, f.code)
}

func (f *fatal) Unwrap() error { return f.cause }

func fatalf(code, format string, args ...any) *fatal {
	return &fatal{code: code, message: fmt.Sprintf(format, args...)}
}

func (f *fatal) response() *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{
		Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: f.code, Message: f.message, Hint: f.hint,
	}
}

// badPassword is the one answer to a wrong password, an unknown role and a role without a password.
func badPassword(role string) *fatal {
	return fatalf(codeBadPassword, "password authentication failed for user %q", role)
}

func unknownEndpoint(id string) *fatal {
	f := fatalf(codeInvalidAuth, "there is no endpoint %q", id)
	f.hint = hintCheckEndpoint
	return f
}

// directoryError turns a Directory's error into what the client sees. verb says what failed: "find", "start".
func directoryError(err error, verb, endpointID string) *fatal {
	var code string
	switch core.KindOf(err) {
	case core.KindNotFound, core.KindGone:
		f := unknownEndpoint(endpointID)
		f.cause = err
		return f
	case core.KindUnavailable, core.KindLocked, core.KindRateLimited:
		code = codeCannotConnectNow
	case core.KindNoSpace:
		code = codeDiskFull
	case core.KindPrecondition, core.KindUnprocessable, core.KindForbidden, core.KindConflict, core.KindInvalid:
		code = codeWrongState
	default:
		code = codeSystemError
	}
	f := fatalf(code, "could not %s endpoint %q: %s", verb, endpointID, core.UserMessage(err))
	f.cause = err
	return f
}
