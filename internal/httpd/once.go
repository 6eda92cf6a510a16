package httpd

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

// makesOnce names the creates that take an Idempotency-Key (IETF draft "The Idempotency-Key HTTP Header Field"): a client that
// got no answer sends the call again with the same key, and gets the answer of the first one for 24 hours.
var makesOnce = map[string]bool{
	"createProject": true, "createProjectBranch": true, "createProjectEndpoint": true,
	"createProjectBranchRole": true, "createProjectBranchDatabase": true,
	"createApiKey": true, "createOrgApiKey": true, "createOrganizationInvitations": true, "grantPermissionToProject": true,
	"createProjectTransferRequest": true, "addProjectJWKS": true,
}

const maxOnceKey = 255 // bytes

// onceCall is a call with an Idempotency-Key on its way to the handler.
type onceCall struct {
	key     string
	request []byte      // hash of what is asked for
	seal    cipher.AEAD // of the answer
}

type onceKey struct{}

// once carries a call out, or answers what an earlier call with its key was answered.
func (d *door) once(w http.ResponseWriter, r *http.Request, keys []string) {
	if len(keys) > 1 || !saneOnceKey(keys[0]) {
		d.fail(w, r, core.Invalidf("Idempotency-Key must be given once, with 1 to %d printable ASCII characters", maxOnceKey))
		return
	}
	body, err := io.ReadAll(r.Body) // in memory already
	if err != nil {
		d.fail(w, r, core.Wrap(err, "httpd.once", ""))
		return
	}
	// The body is normalized: neither the order of its keys nor its form matters.
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n%s\n%s\n", r.Method, r.URL.EscapedPath(), r.URL.RawQuery)
	hash.Write(body)
	c := onceCall{key: keys[0], request: hash.Sum(nil)}
	if c.seal, err = onceSeal(r, c.key); err != nil {
		d.fail(w, r, err)
		return
	}
	if answered, err := d.replay(w, r, c); answered || err != nil {
		if err != nil {
			d.fail(w, r, err)
		}
		return
	}
	if len(body) > 0 {
		setBody(r, body)
	} else {
		setBody(r, nil)
	}
	// An error may mean that a call with the same key, under way at the same time, has been faster.
	buf := &answerBuffer{header: w.Header().Clone()}
	d.validated.ServeHTTP(buf, r.WithContext(context.WithValue(r.Context(), onceKey{}, &c)))
	if buf.status >= http.StatusBadRequest {
		if answered, err := d.replay(w, r, c); answered && err == nil {
			return
		}
	}
	buf.writeTo(w)
}

// replay answers with what is stored under the call's key; answered is false when there is nothing.
func (d *door) replay(w http.ResponseWriter, r *http.Request, c onceCall) (answered bool, err error) {
	request, sealed, found, err := d.opt.UseCases.Answered(r.Context(), CallerFrom(r.Context()), c.key)
	if err != nil || !found {
		return false, err
	}
	if subtle.ConstantTimeCompare(request, c.request) != 1 {
		d.fail(w, r, core.Errorf(core.KindUnprocessable, "IDEMPOTENCY_KEY_REUSED",
			"this Idempotency-Key came with another call in the last 24 hours; a new call needs a new key"))
		return true, nil
	}
	answer, err := c.seal.Open(nil, nil, sealed, nil)
	if err == nil && len(answer) < 3 {
		err = errors.New("a stored answer is too short")
	}
	if err != nil {
		return false, core.Wrap(err, "httpd.replay", "")
	}
	status, err := strconv.Atoi(string(answer[:3]))
	if err != nil {
		return false, core.Wrap(err, "httpd.replay", "")
	}
	w.Header().Set("Idempotency-Replayed", "true")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(answer[3:]) // the client is gone
	return true, nil
}

// onceSeal makes the cipher of stored answers, which hold passwords: its key comes from the API key's secret, which is not
// stored, so nobody but the client can read them.
func onceSeal(r *http.Request, key string) (cipher.AEAD, error) {
	_, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	k, err := hkdf.Key(sha256.New, []byte(strings.TrimSpace(secret)), nil, "bough answer "+key, 32)
	if err != nil {
		return nil, core.Wrap(err, "httpd.once", "")
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, core.Wrap(err, "httpd.once", "")
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	return seal, core.Wrap(err, "httpd.once", "")
}

func saneOnceKey(key string) bool {
	return key != "" && len(key) <= maxOnceKey && !strings.ContainsFunc(key, func(c rune) bool { return c < '!' || c > '~' })
}

// creator is the caller of a create. When the call has an Idempotency-Key, the use case stores what render writes.
func creator[T any](ctx context.Context, render func(made T, w http.ResponseWriter) error) core.Caller {
	c := CallerFrom(ctx)
	o, ok := ctx.Value(onceKey{}).(*onceCall)
	if !ok {
		return c
	}
	c.Once = &core.Once{Key: o.key, Request: o.request, Answer: func(made any) ([]byte, error) {
		v, ok := made.(T)
		if !ok {
			return nil, fmt.Errorf("the use case made a %T, not a %T", made, v)
		}
		buf := &answerBuffer{header: http.Header{}}
		if err := render(v, buf); err != nil {
			return nil, err
		}
		return o.seal.Seal(nil, nil, fmt.Appendf(nil, "%03d%s", buf.code(), buf.body.Bytes()), nil), nil
	}}
	return c
}

// answerBuffer holds an answer back.
type answerBuffer struct {
	header http.Header
	status int // 0 until the header is out
	body   bytes.Buffer
}

func (b *answerBuffer) Header() http.Header { return b.header }

func (b *answerBuffer) WriteHeader(status int) {
	if b.status == 0 {
		b.status = status
	}
}

func (b *answerBuffer) Write(p []byte) (int, error) {
	b.WriteHeader(http.StatusOK)
	return b.body.Write(p)
}

func (b *answerBuffer) code() int { return max(b.status, http.StatusOK) }

func (b *answerBuffer) writeTo(w http.ResponseWriter) {
	clear(w.Header())
	for name, values := range b.header {
		w.Header()[name] = values
	}
	w.WriteHeader(b.code())
	_, _ = w.Write(b.body.Bytes()) // the client is gone
}
