package config

// otpPorts gives the ports that the steps of a knock of type "otp" can have.
func (k *Knock) otpPorts() []PortRange { return k.Pool }

// checkOTP looks at a knock of type "otp".
func checkOTP(r *reader, c *Config, i int) {
	k := &c.Knocks[i]
	path := join("knock", k.Name)
	if k.Secrets == "" && !r.faulty[join(path, "secrets")] {
		r.fault(path, `%s lets nobody in; add secrets = "FILE", which 'sallyport keygen --secret NAME' writes to`, path)
	}
}
