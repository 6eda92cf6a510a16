package postgres

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"regexp"

	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"

	"github.com/boughdb/bough/internal/core"
)

const (
	scramIterations = 4096 // PostgreSQL's default, SCRAM_SHA_256_DEFAULT_ITERATIONS
	scramSaltBytes  = 16
)

// ScramVerifier makes the value that pg_authid.rolpassword holds for a password:
// SCRAM-SHA-256$4096:<salt>$<StoredKey>:<ServerKey> (RFC 5803 form, RFC 7677 keys).
func ScramVerifier(password string) (string, error) {
	if password == "" {
		return "", core.Invalidf("password must not be empty")
	}
	// As PostgreSQL does: a password that SASLprep refuses (invalid or prohibited characters) is used as it stands.
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil && prepared != "" {
		password = prepared
	}
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		return "", core.Wrap(err, "postgres.scram_verifier", "")
	}
	salt := make([]byte, scramSaltBytes)
	_, _ = rand.Read(salt) // never fails: crypto/rand aborts the process instead
	keys, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: scramIterations})
	if err != nil {
		return "", core.Wrap(err, "postgres.scram_verifier", "")
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramIterations, b64(salt), b64(keys.StoredKey), b64(keys.ServerKey)), nil
}

var verifierForm = regexp.MustCompile(`^SCRAM-SHA-256\$\d{1,10}:[A-Za-z0-9+/=]{4,}\$[A-Za-z0-9+/=]{44}:[A-Za-z0-9+/=]{44}$`)

// checkVerifier keeps clear-text passwords, which PostgreSQL would accept too, out of SQL statements.
func checkVerifier(verifier string) error {
	if verifier != "" && !verifierForm.MatchString(verifier) {
		return core.Errorf(core.KindInternal, "", "not a SCRAM-SHA-256 verifier")
	}
	return nil
}
