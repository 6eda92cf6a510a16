package e2e

import (
	"io"
	"net"
	"net/http"
	"net/mail"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"mime/quotedprintable"

	"github.com/emersion/go-smtp"
)

// mailbox is a real SMTP server that refuses its first letter for a while.
type mailbox struct {
	letters chan string
	refused chan struct{}
}

func (m *mailbox) NewSession(*smtp.Conn) (smtp.Session, error) { return &delivery{box: m}, nil }

type delivery struct{ box *mailbox }

func (d *delivery) Reset()                               {}
func (d *delivery) Logout() error                        { return nil }
func (d *delivery) Mail(string, *smtp.MailOptions) error { return nil }
func (d *delivery) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (d *delivery) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	select {
	case d.box.refused <- struct{}{}:
		return &smtp.SMTPError{Code: 451, Message: "try again later"}
	default:
	}
	d.box.letters <- string(raw)
	return nil
}

func smtpServer(t *testing.T) (*mailbox, string) {
	t.Helper()
	box := &mailbox{letters: make(chan string, 10), refused: make(chan struct{}, 1)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := smtp.NewServer(box)
	srv.Domain = "localhost"
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return box, "smtp://" + l.Addr().String()
}

func (m *mailbox) next(t *testing.T) (to, text string) {
	t.Helper()
	select {
	case raw := <-m.letters:
		msg, err := mail.ReadMessage(strings.NewReader(raw))
		must(t, err)
		body, err := io.ReadAll(quotedprintable.NewReader(msg.Body))
		must(t, err)
		return msg.Header.Get("To"), string(body)
	case <-time.After(time.Minute):
		t.Fatal("no letter came")
		return "", ""
	}
}

var linkPattern = regexp.MustCompile(`http://\S+/invitation\?token=(\w+)`)

// accept fills in the page behind a link; it returns the status and the key that is shown.
func accept(t *testing.T, link, name string) (status int, key string) {
	t.Helper()
	u, err := url.Parse(link)
	must(t, err)
	for range 2 { // to open it, even twice, uses nothing up
		res, err := http.Get(link)
		must(t, err)
		res.Body.Close()
		if res.StatusCode != 200 {
			return res.StatusCode, ""
		}
	}
	res, err := http.PostForm("http://"+u.Host+"/invitation", url.Values{"token": {u.Query().Get("token")}, "name": {name}})
	must(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(t, err)
	return res.StatusCode, regexp.MustCompile(`napi_\w+`).FindString(string(body))
}

// Invitations go out by e-mail, also when the mail server is away at first and the server is killed before it is back.
func TestInvitationsByMail(t *testing.T) {
	box, smtpURL := smtpServer(t)
	s := start(t, "--smtp-url", smtpURL, "--smtp-from", "bough@example.com")
	org := s.organization(t, "")
	at := "/organizations/" + org
	r := s.raw(t, "", "POST", at+"/invitations", `{"invitations":[{"email":"Ada@Example.com","role":"member"}]}`)
	if r.status != 200 || strings.Contains(string(r.body), "accept_url") {
		t.Fatalf("%d %s", r.status, r.body)
	}
	eventually(t, time.Minute, func() string {
		if len(box.refused) == 0 {
			return "the mail server was not asked"
		}
		return ""
	})
	// The second try is due in a minute; here it is due at once, for the server that comes after a kill.
	s.Kill9()
	s.Start()
	_, err := s.controlDB(t).Exec(t.Context(), "UPDATE invitations SET mail_due_at = now()")
	must(t, err)
	s.raw(t, "", "POST", at+"/invitations", `{"invitations":[{"email":"bo@example.com","role":"admin"}]}`) // wakes the sender
	links := map[string]string{}
	for range 2 {
		to, text := box.next(t)
		links[strings.Trim(to, "<>")] = linkPattern.FindString(text)
	}
	link := links["ada@example.com"]
	status, key := accept(t, link, "Ada <b>")
	if status != 200 || key == "" {
		t.Fatalf("accepting %q: %d", link, status)
	}
	ask[any](t, s, key, "GET", at, "", 200)
	if again, _ := accept(t, link, "Eve"); again != 404 {
		t.Errorf("the link works twice: %d", again)
	}
	if r := s.raw(t, key, "POST", at+"/invitations", `{"invitations":[{"email":"x@example.com","role":"admin"}]}`); r.status != 403 {
		t.Errorf("a member invites: %d", r.status)
	}
	if log := tail(s.logFile(), 1<<20); strings.Contains(log, "token=") || strings.Contains(log, key) {
		t.Error("the log holds a secret")
	}
	// Who has an account is a member at once, and hears of it.
	s.person(t, "cy")
	ask[any](t, s, "", "POST", at+"/invitations", `{"invitations":[{"email":"cy@example.com","role":"member"}]}`, 200)
	if to, text := box.next(t); !strings.Contains(to, "cy@example.com") || strings.Contains(text, "token") {
		t.Errorf("to %s: %s", to, text)
	}
	if r := s.raw(t, "", "POST", at+"/invitations", `{"invitations":[{"email":"cy@example.com","role":"member"}]}`); r.status != 409 {
		t.Errorf("a member is invited: %d %s", r.status, r.body)
	}
	if r := s.raw(t, key, "GET", at+"/invitations", ""); r.status != 200 || strings.Count(string(r.body), `"email"`) != 3 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// Without a mail server the admin gets the link, once, and the operator sees it.
func TestInvitationsByLink(t *testing.T) {
	s := start(t)
	at := "/organizations/" + s.organization(t, "")
	invite := func() string {
		t.Helper()
		r := s.raw(t, "", "POST", at+"/invitations", `{"invitations":[{"email":"ada@example.com","role":"admin"}]}`)
		return linkPattern.FindString(string(r.body))
	}
	old := invite()
	link := invite()
	if old == "" || link == "" || old == link {
		t.Fatalf("links %q and %q", old, link)
	}
	if status, _ := accept(t, old, "Eve"); status != 404 {
		t.Errorf("a replaced invitation: %d", status)
	}
	if r := s.raw(t, "", "GET", at+"/invitations", ""); strings.Contains(string(r.body), "token") || strings.Count(string(r.body), `"email"`) != 1 {
		t.Errorf("the list: %s", r.body)
	}
	out, err := s.bough("admin", "invitations")
	must(t, err)
	if !strings.Contains(out, link) {
		t.Errorf("bough admin invitations: %s", out)
	}
	if status, key := accept(t, link, "Ada"); status != 200 || key == "" {
		t.Fatalf("%d", status)
	}
	_, err = s.controlDB(t).Exec(t.Context(), "UPDATE invitations SET expires_at = now() - interval '1 hour', accepted_at = NULL")
	must(t, err)
	if status, _ := accept(t, link, "Ada"); status != 404 {
		t.Errorf("an expired invitation: %d", status)
	}
}
