package pool

import (
	"encoding/binary"
	"errors"

	"github.com/jackc/pgx/v5/pgproto3"
)

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// append encodes the refusal as an ErrorResponse.
func (r *Refusal) append(b []byte, severity string) []byte {
	if r.Raw != nil {
		return append(b, withSeverity(r.Raw, severity)...)
	}
	return encode(b, &pgproto3.ErrorResponse{
		Severity: severity, SeverityUnlocalized: severity, Code: r.Code, Message: r.Message, Hint: r.Hint,
	})
}

// encode appends a message of which we know that it is not too long.
func encode(b []byte, m pgproto3.BackendMessage) []byte {
	if out, err := m.Encode(b); err == nil {
		return out
	}
	return b
}

// withSeverity changes the severity of an ErrorResponse.
func withSeverity(msg []byte, severity string) []byte {
	var e pgproto3.ErrorResponse
	if len(msg) < 5 || e.Decode(msg[5:]) != nil {
		return msg
	}
	e.Severity, e.SeverityUnlocalized = severity, severity
	return encode(nil, &e)
}

// asError makes a server's last words an error of a connection that goes on.
func asError(fatal []byte) []byte {
	if fatal == nil {
		return nil
	}
	var e pgproto3.ErrorResponse
	if len(fatal) < 5 || e.Decode(fatal[5:]) != nil {
		return nil
	}
	e.Severity, e.SeverityUnlocalized = "ERROR", "ERROR"
	if e.Hint == "" {
		e.Hint = "The transaction is rolled back. The connection can go on."
	}
	return encode(nil, &e)
}

func shuttingDown() *Refusal {
	return &Refusal{Code: "57P01", Message: "the server is shutting down"}
}

// refusalOf is what a client sees of an error of the Backend.
func refusalOf(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return &Refusal{Code: "58000", Message: "internal error", Err: err}
}

func appendNotice(b []byte, text, hint string) []byte {
	return encode(b, &pgproto3.NoticeResponse{
		Severity: "WARNING", SeverityUnlocalized: "WARNING", Code: "01000", Message: text, Hint: hint,
	})
}

func appendReady(b []byte, status byte) []byte { return append(b, 'Z', 0, 0, 0, 5, status) }

func appendComplete(b []byte, tag string) []byte {
	b = append(b, 'C')
	b = binary.BigEndian.AppendUint32(b, uint32(len(tag)+5))
	return append(append(b, tag...), 0)
}

func appendParameter(b []byte, name, value string) []byte {
	b = append(b, 'S')
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)+len(value)+6))
	b = append(append(b, name...), 0)
	return append(append(b, value...), 0)
}

// appendParse makes a Parse message; tail is the query and its parameters' types.
func appendParse(b []byte, name string, tail []byte) []byte {
	b = append(b, 'P')
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)+5+len(tail)))
	b = append(append(b, name...), 0)
	return append(b, tail...)
}

func appendClose(b []byte, name string) []byte {
	b = append(b, 'C')
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)+6))
	b = append(b, 'S')
	return append(append(b, name...), 0)
}
